"""The rig: real servers, real worker processes, a bad network and the oracle."""
