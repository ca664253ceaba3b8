"""An HTTP server in the wire formats of OpenAI, and the playground."""
