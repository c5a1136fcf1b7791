"""The screens: menu, training, chat, evaluation, presets. Everything that a person sees is drawn here and nowhere else."""
