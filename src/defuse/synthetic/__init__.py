"""An invented world: facts, a tokenizer, lessons, and the tiny models that are taught them."""
