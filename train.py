"""``python train.py`` in a checkout; ``python -m neuro.train`` where the wheel is installed."""

from neuro.train import main

if __name__ == "__main__":
    main()
