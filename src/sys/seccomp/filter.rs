//! The filter itself: a program of classic BPF that the kernel runs at every system call.
//!
//! It must be short, and it must look at the architecture first: the numbers of one architecture mean something else in
//! another. Calls of an i386 program on an x86-64 kernel, and those of the x32 kind, which have a bit set in their number,
//! are let through unseen.

use super::What;

/// `struct sock_filter` of linux/filter.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instruction {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

/// An architecture of system calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arch {
    /// `AUDIT_ARCH_*` of linux/audit.h.
    audit: u32,
    bind: u32,
    listen: u32,
}

const X86_64: Arch = Arch { audit: 0xc000_003e, bind: 49, listen: 50 };
const AARCH64: Arch = Arch { audit: 0xc000_00b7, bind: 200, listen: 201 };

/// That of this program, if it is a known one.
pub(super) const NATIVE: Option<Arch> = if cfg!(all(target_arch = "x86_64", target_pointer_width = "64")) {
    Some(X86_64)
} else if cfg!(target_arch = "aarch64") {
    Some(AARCH64)
} else {
    None
};

impl Arch {
    /// Which call has this number.
    pub(super) fn name(self, number: u32) -> Option<What> {
        match number {
            _ if number == self.bind => Some(What::Bind),
            _ if number == self.listen => Some(What::Listen),
            _ => None,
        }
    }
}

/// Hands bind and listen to the holder of the notify descriptor, and allows all else.
pub(super) fn program(arch: Arch) -> [Instruction; 7] {
    [
        load(ARCH_AT),
        jump_unless_equal(arch.audit, 3),
        load(NUMBER_AT),
        jump_if_equal(arch.bind, 2),
        jump_if_equal(arch.listen, 1),
        give(RET_ALLOW),
        give(RET_USER_NOTIF),
    ]
}

/// Offsets in `struct seccomp_data`.
const NUMBER_AT: u32 = 0;
const ARCH_AT: u32 = 4;

const RET_ALLOW: u32 = 0x7fff_0000;
const RET_USER_NOTIF: u32 = 0x7fc0_0000;

/// `BPF_LD | BPF_W | BPF_ABS`, `BPF_JMP | BPF_JEQ | BPF_K`, `BPF_RET | BPF_K`.
const LOAD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

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

    /// What the kernel would do with a call.
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
    fn bind_and_listen_are_told_and_nothing_else() {
        for arch in [X86_64, AARCH64] {
            let program = program(arch);
            for number in 0..600 {
                let told = interpret(&program, arch.audit, number) == RET_USER_NOTIF;
                assert_eq!(told, arch.name(number).is_some(), "{number}");
                assert!(told || interpret(&program, arch.audit, number) == RET_ALLOW);
            }
            assert_eq!(interpret(&program, arch.audit, arch.bind), RET_USER_NOTIF);
            assert_eq!(interpret(&program, arch.audit, arch.listen), RET_USER_NOTIF);
        }
    }

    #[test]
    fn other_architectures_are_let_through() {
        const I386: u32 = 0x4000_0003;
        const X32_BIT: u32 = 0x4000_0000;
        let program = program(X86_64);
        for number in [49, 50, 102, 361, 363] {
            assert_eq!(interpret(&program, I386, number), RET_ALLOW);
            assert_eq!(interpret(&program, AARCH64.audit, number), RET_ALLOW);
        }
        for number in [X86_64.bind, X86_64.listen] {
            assert_eq!(interpret(&program, X86_64.audit, number | X32_BIT), RET_ALLOW);
        }
    }
}
