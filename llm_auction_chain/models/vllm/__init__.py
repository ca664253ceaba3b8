"""A chat model and scorer on a vLLM server."""
