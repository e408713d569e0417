"""Pure mathematics: tensors and arrays in, values out; no type of the project, no `nn.Module`."""
