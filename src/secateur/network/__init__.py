"""All that knows `torch.nn.Module`: tracing, evidence, surgery, repair, storage."""
