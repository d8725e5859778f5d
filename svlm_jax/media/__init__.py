"""Pictures in: image and video files, cameras, folders; pixels and patches. Host side: numpy, never jax."""
