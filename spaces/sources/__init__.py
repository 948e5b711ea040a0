"""Where models come from: timm, torchvision, modules of the user's, the CIFAR ResNets, points of search spaces."""
