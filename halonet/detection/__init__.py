"""Detection and instance segmentation: torchvision's Mask R-CNN on our backbones."""
