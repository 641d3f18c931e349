"""What the trainer and the daemon share: windows, scaling, network, evaluation, model directory, engine."""
