"""LangChain's interfaces over the auction. No arithmetic here."""
