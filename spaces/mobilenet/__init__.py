"""The parts of the MobileNet family: rows that describe a network, its blocks, the network itself, LR-ASPP."""
