//! TODO(room): see docs/architecture.md
