"""A small vision-language model from nothing, with a stereotype of known size planted in it."""
