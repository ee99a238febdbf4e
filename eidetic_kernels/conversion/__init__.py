"""What ``ek.convert`` does, a step a file.

Forward is recorded (:mod:`.recording`) and run (:mod:`.example`), changes in place are named (:mod:`.in_place`),
training is compared with evaluation (:mod:`.training`), the head is found (:mod:`.head`), tensors, dropouts, attention
and layers get twins that know tasks (:mod:`.parameters`, :mod:`.dropouts`, :mod:`.attention`, :mod:`.twins`), and the
result is compared with the original (:mod:`.comparing`).
"""
