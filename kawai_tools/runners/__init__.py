"""Runners: live llama.cpp servers, one child process a model."""
