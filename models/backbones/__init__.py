"""Backbones that several families share: ResNet, Swin, ConvNeXt."""
