"""The served student: engine, OpenAI-compatible API, Ray Serve application. No training code."""
