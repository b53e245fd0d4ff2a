"""The https room: delivers by POST /mxdeliv."""
