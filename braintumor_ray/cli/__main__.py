"""`python -m braintumor_ray.cli`."""

from braintumor_ray.cli import main

main()
