"""The training side: when updates happen, in a loop of your own and in the Trainer."""
