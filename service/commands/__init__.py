"""The commands of ``sdc``, in files by what they are about; ``service.cli`` puts them together and has those of the server.

Everything heavy is imported inside a command, so that ``--help`` answers at once.
"""
