"""python -m halonet, which torchrun and accelerate launch with -m."""

from halonet.cli import main

main()
