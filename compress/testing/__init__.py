"""What a plug-in must hold, as checks that it runs on itself; each raises AssertionError with a sentence."""
