"""Language models that run inside this process: weights, a sampling engine, and a LangChain chat model."""
