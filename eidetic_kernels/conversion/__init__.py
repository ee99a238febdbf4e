"""What ``ek.convert`` does, one step in each file, in this order.

===============================  ======================================================================================
:mod:`.decompose`                modules whose forward cannot be traced are rebuilt from their parts
:mod:`.trace`                    forward is recorded as a graph, in training and in evaluation mode
:mod:`.verify`                   the module's outputs are computed, for a comparison at the end
:mod:`.example`                  the graph runs on the example, which tells shapes and what changes in place
:mod:`.functionalize`            changes in place become new values
:mod:`.head`                     the layer that becomes task 0's head is found
:mod:`.train_vs_eval`            forward must do the same in training as in evaluation
:mod:`.own_parameters`           tied parameters are refused; parameters that forward uses itself become layers
:mod:`.splits_and_shuffles`      splits and shuffles of channels become modules that follow units
:mod:`.dropout_calls`            calls of dropout become modules, one for each place
:mod:`.attention_calls`          calls of attention become modules
:mod:`.layer_replacement`        plain layers are replaced by layers that know segments
===============================  ======================================================================================

:mod:`.convert` runs them and begins task 0.
"""
