"""What writes texts: our own engine over transformers, or vLLM in an environment of its own."""
