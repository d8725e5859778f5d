"""Host side: chat, video, dataset and batch. numpy, never jax."""
