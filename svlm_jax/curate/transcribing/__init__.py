"""Words with times from videos: subtitles, files of other programs, speech recognition here or behind a server."""
