"""Proc macros that are known to be pure: what they expand to depends on their tokens alone.

A macro that reads files or variables behind rustc's back (``include_dir!``, ``sqlx::query!``,
askama, rust-embed, dotenv) makes a unit depend on more than its dep-info says. A unit that can
reach a macro which is not listed here is proven only where all files of its package agree.

The list holds published packages whose macro code reads neither files nor environment
variables (``CARGO_*`` metadata that Cargo's own hash covers excepted). Leaving a macro out costs
rebuilds; listing an impure one would make builds stale: when in doubt it stays out.
"""

from __future__ import annotations

PURE = frozenset(
    """
    async-recursion async-stream-impl async-trait auto_impl bincode_derive borsh-derive
    bytecheck_derive bytemuck_derive clap_derive const_format_proc_macros ctor darling_macro
    data-encoding-macro-internal defmt-macros delegate derivative derive-new derive-where
    derive_arbitrary derive_builder_macro derive_more derive_more-impl derive_setters
    derive_utils displaydoc educe enum-as-inner enum-iterator-derive enum-map-derive
    enum_dispatch enumflags2_derive enumset_derive failure_derive foreign-types-macros
    futures-macro getset hex-literal impl-more indoc inherent inventory-impl linkme-impl
    logos-derive mockall_derive monostate-impl multiversion-macros num-derive num_enum_derive
    ouroboros_macro paste pastey peg-macros phf_macros pin-project-internal
    proc-macro-error-attr proc-macro-error-attr2 proc-macro-hack prost-derive ptr_meta_derive
    ref-cast-impl rkyv_derive rust_decimal_macros rustversion schemars_derive scroll_derive
    seq-macro serde_derive serde_repr serde_with_macros serial_test_derive simd-json-derive
    snafu-derive structmeta-derive structopt-derive strum_macros tabled_derive test-case-macros
    thiserror-impl time-macros tokio-macros tracing-attributes tracing-test-macro
    typed-builder-macro typeshare-annotation typetag-impl uuid-macro-internal valuable-derive
    windows-implement windows-interface yoke-derive zbus_macros zerocopy-derive zerofrom-derive
    zeroize_derive zerovec-derive zvariant_derive
    """.split()
)

READS_BEYOND = {
    # sqlx's offline mode: prepared queries of the whole workspace.
    "sqlx-macros": (".sqlx", "sqlx-data.json"),
}
"""What known macros read outside the package that calls them, relative to the workspace root."""

UNSTATED = "(what the script reads)"
"""Stands for a script that declares only its own sources: it says nothing of what it reads."""

INCBIN = "(incbin)"
"""Stands for the assembler's ``.incbin``, which names files that rustc never sees."""
