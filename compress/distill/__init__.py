"""Learning from a teacher: the losses, the training step that they join, the section `finetune` of a recipe."""
