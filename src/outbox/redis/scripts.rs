//! The scripts that the server runs, each in one step.

use redis::Script;

pub(super) struct Scripts {
    pub(super) greet: Script,
    pub(super) push: Script,
    pub(super) claim: Script,
    pub(super) settle: Script,
    pub(super) list: Script,
    pub(super) order: Script,
    pub(super) pending: Script,
    pub(super) release: Script,
    pub(super) remove: Script,
    pub(super) rule: Script,
}

impl Scripts {
    pub(super) fn new() -> Scripts {
        // What makes room, or shows what there is, is to work where memory is full.
        let script = |text| Script::new(&["#!lua flags=allow-oom\n", include_str!("prelude.lua"), text].concat());
        Scripts {
            greet: script(include_str!("greet.lua")),
            push: Script::new(&["#!lua\n", include_str!("prelude.lua"), include_str!("push.lua")].concat()),
            claim: script(include_str!("claim.lua")),
            settle: script(include_str!("settle.lua")),
            list: script(include_str!("list.lua")),
            order: script(include_str!("order.lua")),
            pending: script(include_str!("pending.lua")),
            release: script(include_str!("release.lua")),
            remove: script(include_str!("remove.lua")),
            rule: script(include_str!("rule.lua")),
        }
    }
}
