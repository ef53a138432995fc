"""The history of the tables. Each revision goes up and down."""
