//! Writes all changes of a file into it at once, each behind a switch of its own.
//!
//! `a < b` becomes `(if crate::mutant::is(7) { a <= b } else { a < b })`, so that one build has all
//! of them, and a process runs with the one that it is asked for.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;

use proc_macro2::LineColumn;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use crate::list::{Genre, Mutant};

/// A text that is put into the source, in pieces that belong to one mutant or to none.
struct Insertion {
    at: usize,
    /// The order among those of one place: what closes first, and of it the innermost.
    rank: (u8, isize),
    pieces: Vec<(String, Option<usize>)>,
}

/// A source with mutants in it, and where in it each of them stands.
pub struct Woven {
    pub text: String,
    pub places: Vec<(Range<usize>, usize)>,
}

/// Where lines begin, to turn a line and a column into an offset.
struct Source<'a> {
    text: &'a str,
    lines: Vec<usize>,
}

impl<'a> Source<'a> {
    fn new(text: &'a str) -> Self {
        let ends = text.match_indices('\n').map(|(end, _)| end + 1);
        Self { text, lines: std::iter::once(0).chain(ends).collect() }
    }

    /// The offset of a line, counted from 1, and a column of characters, counted from 0.
    fn offset(&self, line: usize, column: usize) -> usize {
        let start = self.lines[line - 1];
        let rest = &self.text[start..];
        start + rest.char_indices().nth(column).map_or(rest.len(), |(offset, _)| offset)
    }

    fn range(&self, node: &impl Spanned) -> Range<usize> {
        let at = |place: LineColumn| self.offset(place.line, place.column);
        at(node.span().start())..at(node.span().end())
    }
}

/// A source with one mutant in place of what it replaces.
pub fn replaced(text: &str, mutant: &Mutant) -> String {
    let source = Source::new(text);
    let start = source.offset(mutant.span.start.line, mutant.span.start.column - 1);
    let end = source.offset(mutant.span.end.line, mutant.span.end.column - 1);
    format!("{}{}{}", &text[..start], mutant.replacement, &text[end..])
}

/// Weaves `mutants`, given with their numbers, into a source. The numbers of those that found no
/// place come back too.
pub fn weave(text: &str, mutants: &[(usize, &Mutant)]) -> (Woven, Vec<usize>) {
    let source = Source::new(text);
    let mut by_place: HashMap<(usize, usize), Vec<(usize, &Mutant)>> = HashMap::new();
    for &(number, mutant) in mutants {
        let start = source.offset(mutant.span.start.line, mutant.span.start.column - 1);
        let end = match mutant.genre {
            // It may end with a comma.
            Genre::StructField => start,
            _ => source.offset(mutant.span.end.line, mutant.span.end.column - 1),
        };
        by_place.entry((start, end)).or_default().push((number, mutant));
    }
    let mut weaver = Weaver { source, by_place, insertions: RefCell::default() };
    weaver.visit_file(&syn::parse_file(text).expect("the source is Rust"));
    let left = weaver.by_place.into_values().flatten().map(|(number, _)| number).collect();
    (write(text, weaver.insertions.into_inner()), left)
}

fn write(text: &str, mut insertions: Vec<Insertion>) -> Woven {
    insertions.sort_by_key(|insertion| (insertion.at, insertion.rank));
    let mut woven = Woven { text: String::new(), places: Vec::new() };
    let mut written = 0;
    for insertion in insertions {
        woven.text.push_str(&text[written..insertion.at]);
        written = insertion.at;
        for (piece, number) in insertion.pieces {
            let start = woven.text.len();
            woven.text.push_str(&piece);
            woven.places.extend(number.map(|number| (start..woven.text.len(), number)));
        }
    }
    woven.text.push_str(&text[written..]);
    woven
}

struct Weaver<'a> {
    source: Source<'a>,
    by_place: HashMap<(usize, usize), Vec<(usize, &'a Mutant)>>,
    insertions: RefCell<Vec<Insertion>>,
}

impl Weaver<'_> {
    /// Takes the mutants of a genre that replace just this range.
    fn take(&mut self, range: &Range<usize>, genre: Genre) -> Vec<(usize, String)> {
        let Some(mutants) = self.by_place.get_mut(&(range.start, range.end)) else {
            return Vec::new();
        };
        let taken = mutants.extract_if(.., |(_, mutant)| mutant.genre == genre);
        taken.map(|(number, mutant)| (number, mutant.replacement.clone())).collect()
    }

    fn put(&self, at: usize, pieces: Vec<(String, Option<usize>)>) {
        self.insertions.borrow_mut().push(Insertion { at, rank: (1, 0), pieces });
    }

    /// Puts something around a range.
    fn wrap(&self, range: &Range<usize>, before: Vec<(String, Option<usize>)>, after: &str) {
        let length = range.len().cast_signed();
        let mut insertions = self.insertions.borrow_mut();
        insertions.push(Insertion { at: range.start, rank: (2, -length), pieces: before });
        let pieces = vec![(after.to_owned(), None)];
        insertions.push(Insertion { at: range.end, rank: (0, length), pieces });
    }

    /// Evaluates something else in place of a range, if one of these mutants is switched on.
    fn choose(&self, range: &Range<usize>, others: Vec<(usize, String)>) {
        if others.is_empty() {
            return;
        }
        let mut before = vec![("(".to_owned(), None)];
        for (number, other) in others {
            before.push((format!("if {} {{ {other} }} else ", is(number)), Some(number)));
        }
        before.push(("{ ".to_owned(), None));
        self.wrap(range, before, " })");
    }

    fn body(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let (Some(first), Some(last)) = (block.stmts.first(), block.stmts.last()) else {
            return;
        };
        let range = self.source.range(first).start..self.source.range(last).end;
        let is_impl = |output: &syn::ReturnType| match output {
            syn::ReturnType::Type(_, of) => matches!(**of, syn::Type::ImplTrait(_)),
            syn::ReturnType::Default => false,
        };
        // Neither can choose between two bodies.
        if signature.constness.is_some() || is_impl(&signature.output) {
            return;
        }
        for (number, value) in self.take(&range, Genre::FnValue) {
            let early = format!("if {} {{ return {value}; }} ", is(number));
            self.put(range.start, vec![(early, Some(number))]);
        }
    }
}

fn is(number: usize) -> String {
    format!("crate::mutant::is({number})")
}

impl Visit<'_> for Weaver<'_> {
    fn visit_item_fn(&mut self, function: &syn::ItemFn) {
        self.body(&function.sig, &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &syn::ImplItemFn) {
        self.body(&function.sig, &function.block);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &syn::TraitItemFn) {
        if let Some(block) = &function.default {
            self.body(&function.sig, block);
        }
        visit::visit_trait_item_fn(self, function);
    }

    fn visit_expr_binary(&mut self, binary: &syn::ExprBinary) {
        let whole = self.source.range(binary);
        let operator = self.source.range(&binary.op);
        let is_let = |side: &syn::Expr| matches!(side, syn::Expr::Let(_));
        if !is_let(&binary.left) && !is_let(&binary.right) {
            let text = self.source.text;
            let (left, right) =
                (&text[whole.start..operator.start], &text[operator.end..whole.end]);
            let others = self.take(&operator, Genre::BinaryOperator).into_iter();
            let others = others.map(|(number, other)| (number, format!("{left}{other}{right}")));
            self.choose(&whole, others.collect());
        }
        visit::visit_expr_binary(self, binary);
    }

    fn visit_expr_unary(&mut self, unary: &syn::ExprUnary) {
        let operand = self.source.text[self.source.range(&*unary.expr)].to_owned();
        let others = self.take(&self.source.range(&unary.op), Genre::UnaryOperator).into_iter();
        let others = others.map(|(number, _)| (number, operand.clone())).collect();
        self.choose(&self.source.range(unary), others);
        visit::visit_expr_unary(self, unary);
    }

    fn visit_arm(&mut self, arm: &syn::Arm) {
        let deleted = self.take(&self.source.range(arm), Genre::MatchArm);
        let stays: Vec<_> = deleted
            .iter()
            .map(|(number, _)| (format!("!{} && ", is(*number)), Some(*number)))
            .collect();
        if let Some((_, guard)) = &arm.guard {
            let range = self.source.range(&**guard);
            let mut before = vec![];
            for (number, value) in self.take(&range, Genre::MatchArmGuard) {
                let choice = format!("if {} {{ {value} }} else ", is(number));
                before.push((choice, Some(number)));
            }
            if !stays.is_empty() || !before.is_empty() {
                let mut all = stays;
                all.push(("(".to_owned(), None));
                all.append(&mut before);
                all.push(("{ ".to_owned(), None));
                self.wrap(&range, all, " })");
            }
        } else if !stays.is_empty() {
            let mut pieces = vec![(" if ".to_owned(), None)];
            pieces.extend(stays);
            pieces.push(("true".to_owned(), None));
            self.put(self.source.range(&arm.pat).end, pieces);
        }
        visit::visit_arm(self, arm);
    }

    fn visit_expr_struct(&mut self, literal: &syn::ExprStruct) {
        if let Some(rest) = &literal.rest {
            let rest = self.source.text[self.source.range(&**rest)].to_owned();
            for field in &literal.fields {
                let range = self.source.range(field);
                let syn::Member::Named(name) = &field.member else { continue };
                let others = self.take(&(range.start..range.start), Genre::StructField).into_iter();
                let other = format!("({rest}).{name}");
                let others: Vec<_> = others.map(|(number, _)| (number, other.clone())).collect();
                if others.is_empty() {
                    continue;
                }
                if field.colon_token.is_some() {
                    self.choose(&self.source.range(&field.expr), others);
                } else {
                    self.put(range.start, vec![(format!("{name}: "), None)]);
                    self.choose(&range, others);
                }
            }
        }
        visit::visit_expr_struct(self, literal);
    }
}
