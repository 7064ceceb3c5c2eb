"""Where examples come from: tar shards of captioned images, and the transforms that make tensors of them."""
