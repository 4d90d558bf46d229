"""The stages of a run, in order. Each is a function of a `Session`; each skips what is finished."""
