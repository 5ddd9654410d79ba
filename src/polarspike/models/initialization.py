"""The starting weights of every network in the registry."""

from torch import nn


def initialize(network: nn.Module) -> None:
    """Draw the weights of all layers in place, in module order, from torch's global generator.

    Convolutions: Kaiming normal over the outgoing connections, std = sqrt(2 / (out_channels * kernel area)), which
    keeps the size of gradients through ReLU. Linear layers: std = 1 / sqrt(inputs), because the outgoing count of
    the last one is the number of classes and would start with confident logits. Batch norms: scale 1, shift 0, also
    the last of a residual branch: a branch that starts silent gives a quantizer nothing to calibrate on.

    Source: He et al. 2015, arXiv 1502.01852.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="linear")
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
