"""The quickstart: data made by code, two job files, and the way from an empty machine to a served student."""
