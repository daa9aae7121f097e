"""Detection and instance segmentation: torchvision's Mask R-CNN and Faster R-CNN on HaloNets."""
