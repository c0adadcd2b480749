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
        let [beginning, lanes, claiming] =
            [include_str!("prelude.lua"), include_str!("lanes.lua"), include_str!("claiming.lua")];
        // What makes room, or shows what there is, is to work where memory is full.
        let script = |parts: &[&str]| Script::new(&["#!lua flags=allow-oom\n", beginning, &parts.concat()].concat());
        Scripts {
            greet: script(&[include_str!("greet.lua")]),
            push: Script::new(&["#!lua\n", beginning, lanes, include_str!("push.lua")].concat()),
            claim: script(&[lanes, claiming, include_str!("claim.lua")]),
            settle: script(&[lanes, claiming, include_str!("settle.lua")]),
            list: script(&[include_str!("list.lua")]),
            order: script(&[lanes, include_str!("order.lua")]),
            pending: script(&[lanes, include_str!("pending.lua")]),
            release: script(&[lanes, include_str!("release.lua")]),
            remove: script(&[include_str!("remove.lua")]),
            rule: script(&[lanes, include_str!("rule.lua")]),
        }
    }
}
