"""What it takes to train the shipped models: a cache of images, the losses, the loop, the evaluation."""
