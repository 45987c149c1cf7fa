"""Functions of secrets, built on the primitives: each over the whole range, its error, rounds and bytes stated."""
