"""Words: the byte-pair tokenizer, the prompt templates, and the nouns of a caption."""
