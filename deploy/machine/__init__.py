"""What a run needs of the machine it starts on: folders for temporary files, and a Ray that answers.

Everything here is checked before Ray or a model is started, so that a wrong machine costs one line and a few seconds.
"""
