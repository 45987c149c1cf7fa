"""Secret-shared versions of aten operators, by kind. encml.tensor.table says which operator goes where."""
