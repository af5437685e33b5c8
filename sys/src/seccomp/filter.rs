//! The filter: a classic BPF program that the kernel runs at every system call.
//!
//! It must be short, and must check the architecture first: call numbers differ between architectures. It allows all
//! calls of i386 programs on an x86-64 kernel, and of x32 programs, whose call numbers have an extra bit.

use std::mem::offset_of;

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW, SECCOMP_RET_USER_NOTIF,
};
use libc::{seccomp_data, sock_filter as Instruction};

use super::{Calls, SystemCall};

/// An architecture of system calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arch {
    /// `AUDIT_ARCH_*` of linux/audit.h.
    audit: u32,
    sockets: &'static [(u32, SystemCall)],
    paths: &'static [(u32, SystemCall)],
}

const X86_64: Arch = Arch {
    audit: 0xc000_003e,
    sockets: &[(49, SystemCall::Bind), (50, SystemCall::Listen)],
    paths: &[
        (87, SystemCall::Unlink),
        (263, SystemCall::UnlinkAt),
        (82, SystemCall::Rename),
        (264, SystemCall::RenameAt),
        (316, SystemCall::RenameAt),
    ],
};
const AARCH64: Arch = Arch {
    audit: 0xc000_00b7,
    sockets: &[(200, SystemCall::Bind), (201, SystemCall::Listen)],
    paths: &[(35, SystemCall::UnlinkAt), (38, SystemCall::RenameAt), (276, SystemCall::RenameAt)],
};

/// The architecture of this program, if supported.
pub(super) const NATIVE: Option<Arch> = if cfg!(all(target_arch = "x86_64", target_pointer_width = "64")) {
    Some(X86_64)
} else if cfg!(target_arch = "aarch64") {
    Some(AARCH64)
} else {
    None
};

impl Arch {
    /// The call with this number.
    pub(super) fn name(self, number: u32) -> Option<SystemCall> {
        self.calls(Calls::SocketsAndPaths).find(|(known, _)| *known == number).map(|(_, what)| what)
    }

    fn calls(self, which: Calls) -> impl Iterator<Item = (u32, SystemCall)> {
        let paths = if which == Calls::SocketsAndPaths { self.paths } else { &[] };
        self.sockets.iter().chain(paths).copied()
    }
}

/// Builds the filter: passes some calls to the holder of the notify descriptor and allows the rest.
pub(super) fn program(arch: Arch, which: Calls) -> Vec<Instruction> {
    let mut numbers: Vec<u32> = arch.calls(which).map(|(number, _)| number).collect();
    let count = numbers.len() as u8;
    let mut program = vec![load(ARCH_AT), jump_unless_equal(arch.audit, count + 1), load(NUMBER_AT)];
    // Each jumps over those that follow, and over the permission.
    program
        .extend(numbers.drain(..).zip((1..=count).rev()).map(|(number, left)| jump_if_equal(number, left)));
    program.extend([give(SECCOMP_RET_ALLOW), give(SECCOMP_RET_USER_NOTIF)]);
    program
}

const NUMBER_AT: u32 = offset_of!(seccomp_data, nr) as u32;
const ARCH_AT: u32 = offset_of!(seccomp_data, arch) as u32;

const LOAD: u16 = (BPF_LD | BPF_W | BPF_ABS) as u16;
const JUMP_EQUAL: u16 = (BPF_JMP | BPF_JEQ | BPF_K) as u16;
const RETURN: u16 = (BPF_RET | BPF_K) as u16;

const fn load(offset: u32) -> Instruction {
    Instruction { code: LOAD, jt: 0, jf: 0, k: offset }
}

const fn jump_if_equal(k: u32, by: u8) -> Instruction {
    Instruction { code: JUMP_EQUAL, jt: by, jf: 0, k }
}

const fn jump_unless_equal(k: u32, by: u8) -> Instruction {
    Instruction { code: JUMP_EQUAL, jt: 0, jf: by, k }
}

const fn give(k: u32) -> Instruction {
    Instruction { code: RETURN, jt: 0, jf: 0, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's result for a call.
    fn interpret(program: &[Instruction], arch: u32, number: u32) -> u32 {
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let Instruction { code, jt, jf, k } = program[at];
            at += 1;
            match code {
                LOAD if k == ARCH_AT => accumulator = arch,
                LOAD if k == NUMBER_AT => accumulator = number,
                JUMP_EQUAL => at += usize::from(if accumulator == k { jt } else { jf }),
                RETURN => return k,
                _ => panic!("{code:#x} {k} is not understood"),
            }
        }
    }

    #[test]
    fn the_calls_that_are_wanted_are_told_and_nothing_else() {
        for arch in [X86_64, AARCH64] {
            for which in [Calls::Sockets, Calls::SocketsAndPaths] {
                let program = program(arch, which);
                for number in 0..600 {
                    let told = interpret(&program, arch.audit, number) == SECCOMP_RET_USER_NOTIF;
                    assert_eq!(told, arch.calls(which).any(|(known, _)| known == number), "{number}");
                    assert!(told || interpret(&program, arch.audit, number) == SECCOMP_RET_ALLOW);
                }
            }
            assert_eq!(arch.name(arch.sockets[0].0), Some(SystemCall::Bind));
            assert_eq!(arch.name(arch.paths[0].0), Some(arch.paths[0].1));
        }
        assert_eq!(X86_64.calls(Calls::SocketsAndPaths).count(), 7);
    }

    #[test]
    fn other_architectures_are_let_through() {
        const I386: u32 = 0x4000_0003;
        const X32_BIT: u32 = 0x4000_0000;
        let program = program(X86_64, Calls::SocketsAndPaths);
        for number in [10, 38, 49, 50, 87, 102, 361, 363] {
            assert_eq!(interpret(&program, I386, number), SECCOMP_RET_ALLOW);
            assert_eq!(interpret(&program, AARCH64.audit, number), SECCOMP_RET_ALLOW);
        }
        for (number, _) in X86_64.calls(Calls::SocketsAndPaths) {
            assert_eq!(interpret(&program, X86_64.audit, number | X32_BIT), SECCOMP_RET_ALLOW);
        }
    }
}
