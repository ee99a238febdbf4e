"""What ``ek.convert`` does, in this order.

==================  ====================================================================================================
:mod:`.verify`      the module's outputs are computed, for a comparison at the end
:mod:`.graphs`      forward is captured as a graph of ATen operations, in training and in evaluation mode, which must do
                    the same; changes in place become new values, what is fixed is computed once
:mod:`.head`        the layer that becomes task 0's head is found
:mod:`.owners`      whose each number is, is followed through the graph by rules, one for each kind of operation; what
                    meets is tied, and units are sorted into groups
:mod:`.emission`    the network's graph is built of layers that know segments, and tried in a network that was pruned at
                    random
:mod:`.network`     the network with this graph
==================  ====================================================================================================

:mod:`.convert` runs them and begins task 0.
"""
