//! LavaKV: an LSM key-value engine with key-value separation.
