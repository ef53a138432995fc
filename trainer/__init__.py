"""Learning: data, models, objectives, the loop, evaluation, report. Knows neither Ray nor gRPC."""
