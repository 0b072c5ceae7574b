"""What runs the network, and the network with its maps as one file."""
