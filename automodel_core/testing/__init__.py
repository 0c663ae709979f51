"""What plugin authors use to test their plugins against the engine's contracts."""
